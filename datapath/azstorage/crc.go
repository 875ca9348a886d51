package azstorage

import (
	"hash/crc64"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
)

// crcTable is of the polynomial that Azure Storage checks requests' bodies with.
var crcTable = crc64.MakeTable(0x9A6C9329AC4BC9B5)

// CRC64 has the account check the content and refuse it when it is not this.
func CRC64(content []byte) blob.TransferValidationType {
	return blob.TransferValidationTypeCRC64(crc64.Checksum(content, crcTable))
}
